-- wrk's side of a run: PATH, a body with SEED in it, and the first seed; each request has the next. The result is one line of JSON.
local path, body, seed

function init(args)
  path, body, seed = args[1], args[2], tonumber(args[3])
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  seed = seed + 1000
  return wrk.format("POST", path, nil, (body:gsub("SEED", string.format("%d", seed))))
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "max_ms": %f, "refused": %d, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
