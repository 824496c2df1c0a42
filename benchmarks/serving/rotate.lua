-- Sends the requests of a folder in turn. The argument is a file: the path, the number of headers,
-- the headers as "Name: value", and then a file with a body on each line.
local threads = 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

function init(args)
   local lines = {}
   for line in io.lines(args[1]) do lines[#lines + 1] = line end
   local headers, first = {}, 3 + tonumber(lines[2])
   for i = 3, first - 1 do
      local name, value = lines[i]:match("^([^:]+): (.*)$")
      headers[name] = value
   end
   requests = {}
   for i = first, #lines do
      local file = assert(io.open(lines[i], "rb"))
      requests[#requests + 1] = wrk.format("POST", lines[1], headers, file:read("*all"))
      file:close()
   end
   -- Threads begin at different pictures.
   turn = number * 7
end

function request()
   turn = turn + 1
   return requests[turn % #requests + 1]
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      '\n{"requests":%d,"seconds":%f,"failed":%d,"p50":%f,"p95":%f,"p99":%f,"max":%f}\n',
      summary.requests, summary.duration / 1e6,
      e.connect + e.read + e.write + e.status + e.timeout,
      latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
      latency:percentile(99) / 1e3, latency.max / 1e3))
end
