"""Small networks; each file needs only torch, so that it can travel in an archive by itself."""
