"""Which other hosts the processes of a test try to reach, seen from below any library."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# What glibc itself resolves does not pass here, and so names are noted where they are asked for.
_SOURCE = r"""
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what) {
  char line[400];
  int length = snprintf(line, sizeof line, "%s\n", what);
  int file = open(getenv("NOTED_CONNECTIONS"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (file >= 0 && write(file, line, length)) close(file);
}

static void address(const sockaddr *to) {
  char text[INET6_ADDRSTRLEN] = "";
  if (to && to->sa_family == AF_INET)
    inet_ntop(AF_INET, &((const sockaddr_in *)to)->sin_addr, text, sizeof text);
  else if (to && to->sa_family == AF_INET6)
    inet_ntop(AF_INET6, &((const sockaddr_in6 *)to)->sin6_addr, text, sizeof text);
  if (*text && strncmp(text, "127.", 4) && strcmp(text, "::1") && strncmp(text, "::ffff:127.", 11))
    note(text);
}

extern "C" int connect(int fd, const sockaddr *to, socklen_t length) {
  address(to);
  return ((int (*)(int, const sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(fd, to, length);
}

extern "C" ssize_t sendto(int fd, const void *data, size_t size, int flags, const sockaddr *to,
                          socklen_t length) {
  address(to);
  return ((ssize_t (*)(int, const void *, size_t, int, const sockaddr *, socklen_t))dlsym(
      RTLD_NEXT, "sendto"))(fd, data, size, flags, to, length);
}

extern "C" int getaddrinfo(const char *name, const char *service, const addrinfo *hints,
                           addrinfo **found) {
  char own[256] = "";
  unsigned char number[16];
  gethostname(own, sizeof own - 1);
  if (name && strcmp(name, own) && strcmp(name, "localhost") && !inet_pton(AF_INET, name, number) &&
      !inet_pton(AF_INET6, name, number))
    note(name);
  return ((int (*)(const char *, const char *, const addrinfo *, addrinfo **))dlsym(
      RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
}
"""


def watched(folder: Path) -> tuple[dict[str, str], Path]:
    """Variables for a process that is to be watched, and the file of the hosts that it, or one that
    it starts, tries to reach."""
    source, library, noted = (folder / name for name in ("noted.cpp", "noted.so", "noted.txt"))
    source.write_text(_SOURCE)
    compiler = os.environ.get("CXX", "g++")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=120
    )
    noted.touch()
    return {"LD_PRELOAD": str(library), "NOTED_CONNECTIONS": str(noted)}, noted
