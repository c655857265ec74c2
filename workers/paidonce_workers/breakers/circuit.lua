-- Opens, half-opens and closes a circuit: its rules for Redis, one atomic script that `circuit_scripts.py` calls.
-- The same rules are in `tests/workers/breakers/model.py` and, while Redis is away, in `without_redis.py`: change all
-- three.
--
-- KEYS[1]  the circuit, one string packed by cmsgpack
-- ARGV[1]  what to do; ARGV[2]  now in microseconds, '' for the server's clock; the rest by act, see `acts`
--
-- Answers {verdict, state, epoch, now}, and if the circuit is not closed or has just moved also
-- {since, until, reason, moved from, why}: until is -1 for "by hand", moved from is '' for "did not move".

local TENTHS = 10
local HIGHEST_POWER = 60
local LEAST_RETRY_AFTER = 1000000
local FORGET_MS = 86400000 -- a circuit that nobody called for a day is forgotten, and so closed

local key = KEYS[1]
local now
if ARGV[2] == '' then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
else
  now = tonumber(ARGV[2])
end

local function load()
  local packed = redis.call('GET', key)
  if packed then
    local readable, circuit = pcall(cmsgpack.unpack, packed)
    if readable and type(circuit) == 'table' and circuit.version == 1 then return circuit end
  end
  return nil
end

local function closed(epoch, reason)
  return {
    version = 1, epoch = epoch, state = 'closed', since = 0, till = 0, reason = reason, consecutive = 0, windows = {},
    failed_probes = 0, probes = {}, succeeded_probes = 0,
  }
end

local function save(circuit)
  local packed = cmsgpack.pack(circuit)
  if circuit.till == -1 then
    redis.call('SET', key, packed)
  else
    local left = math.max(0, math.ceil((circuit.till - now) / 1000))
    redis.call('SET', key, packed, 'PX', string.format('%.0f', FORGET_MS + left))
  end
end

local function answer(circuit, verdict, from, why)
  if circuit.state == 'closed' and not from then return {verdict, circuit.state, circuit.epoch, now} end
  return {
    verdict, circuit.state, circuit.epoch, now, circuit.since, circuit.till, circuit.reason, from or '', why or '',
  }
end

local function move(circuit, state, reason, verdict, till, failed_probes)
  local after = closed(circuit.epoch + 1, reason)
  after.state = state
  if state ~= 'closed' then
    after.since = circuit.state == 'closed' and now or circuit.since
    after.till = till
    after.failed_probes = failed_probes
  end
  save(after)
  return answer(after, verdict, circuit.state, reason)
end

local acts = {}

-- token, microseconds that its place as a probe lasts, how many probes at a time
function acts.admit()
  local token, lasts, most = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  local circuit = load()
  if not circuit then
    circuit = closed(now, '')
    save(circuit)
  end
  if circuit.state == 'closed' then return answer(circuit, 'admitted') end
  local from, why
  if circuit.state == 'open' then
    if circuit.till == -1 or now < circuit.till then return answer(circuit, 'refused') end
    from, why = 'open', 'its time was over'
    circuit.epoch = circuit.epoch + 1
    circuit.state = 'half-open'
    circuit.till = 0
    circuit.probes = {}
    circuit.succeeded_probes = 0
  end
  local live, count, soonest, dropped = {}, 0, nil, false
  for name, expiry in pairs(circuit.probes) do
    if expiry > now then
      live[name] = expiry
      count = count + 1
      if not soonest or expiry < soonest then soonest = expiry end
    else
      dropped = true
    end
  end
  circuit.probes = live
  if live[token] or count < most then
    live[token] = now + lasts
    save(circuit)
    return answer(circuit, 'probe', from, why)
  end
  if dropped then save(circuit) end
  local refused = answer(circuit, 'refused')
  refused[6] = soonest
  refused[7] = 'a probe is under way'
  return refused
end

-- epoch, token, success | failure | neutral, the server's Retry-After in microseconds or '', kinds of the failure,
-- a chance from 0 to 1, and of the policy: consecutive_failures, window in microseconds, min_calls, failure_rate,
-- open base and cap in microseconds, open_jitter, probes
function acts.report()
  local epoch, token, effect, retry_after, detail = tonumber(ARGV[3]), ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]
  local circuit = load()
  if not circuit then return {'late', 'closed', 0, now} end
  if circuit.epoch ~= epoch or circuit.state == 'open' then return answer(circuit, 'late') end

  local function open(reason)
    local grown = math.min(tonumber(ARGV[14]), tonumber(ARGV[13]) * 2 ^ math.min(circuit.failed_probes, HIGHEST_POWER))
    local lasts = math.floor(grown * (1 - tonumber(ARGV[15]) * tonumber(ARGV[8])))
    if retry_after then lasts = math.max(retry_after, math.min(LEAST_RETRY_AFTER, lasts)) end
    if detail ~= '' then reason = reason .. ' (' .. detail .. ')' end
    return move(circuit, 'open', reason, 'counted', now + lasts, circuit.failed_probes)
  end

  if circuit.state == 'half-open' then
    if not circuit.probes[token] then return answer(circuit, 'late') end
    circuit.probes[token] = nil
    if effect == 'failure' then
      circuit.failed_probes = circuit.failed_probes + 1
      return open('a probe failed')
    end
    if effect == 'success' then
      circuit.succeeded_probes = circuit.succeeded_probes + 1
      if circuit.succeeded_probes >= tonumber(ARGV[16]) then
        return move(circuit, 'closed', string.format('probes succeeded: %d', circuit.succeeded_probes), 'counted')
      end
    end
    save(circuit)
    return answer(circuit, 'counted')
  end

  if effect == 'neutral' then return answer(circuit, 'counted') end
  local failed = effect == 'failure'
  circuit.consecutive = failed and circuit.consecutive + 1 or 0

  -- Each tally is {tenth of the window, successes, failures}; what is older or (a clock went back) newer is left out.
  local tenth = math.max(1, math.floor(tonumber(ARGV[10]) / TENTHS))
  local window = string.format('%.0f', tenth)
  local current = math.floor(now / tenth)
  local kept = {}
  for _, tally in ipairs(circuit.windows[window] or {}) do
    if current - TENTHS < tally[1] and tally[1] <= current then kept[#kept + 1] = tally end
  end
  if #kept == 0 or kept[#kept][1] ~= current then kept[#kept + 1] = {current, 0, 0} end
  local place = failed and 3 or 2
  kept[#kept][place] = kept[#kept][place] + 1
  circuit.windows[window] = kept

  if failed then -- a success never trips
    if circuit.consecutive >= tonumber(ARGV[9]) then
      return open(string.format('failures in a row: %d', circuit.consecutive))
    end
    local calls, failures = 0, 0
    for _, tally in ipairs(kept) do
      calls = calls + tally[2] + tally[3]
      failures = failures + tally[3]
    end
    if calls >= tonumber(ARGV[11]) and failures / calls >= tonumber(ARGV[12]) then
      return open(string.format('failure rate: %d %% of %d calls', math.floor(100 * failures / calls), calls))
    end
  end
  save(circuit)
  return answer(circuit, 'counted')
end

-- microseconds that a place lasts, tokens
function acts.renew()
  local circuit = load()
  if not circuit then return {'late', 'closed', 0, now} end
  local found = false
  for index = 4, #ARGV do
    if circuit.probes[ARGV[index]] then
      circuit.probes[ARGV[index]] = now + tonumber(ARGV[3])
      found = true
    end
  end
  if found then save(circuit) end
  return answer(circuit, found and 'counted' or 'late')
end

-- microseconds that it stays open or '', reason
function acts.open()
  local till = ARGV[3] == '' and -1 or now + tonumber(ARGV[3])
  return move(load() or closed(now, ''), 'open', ARGV[4], 'done', till, 0)
end

-- reason
function acts.close()
  local circuit = load() or closed(now, '')
  if circuit.state == 'closed' then
    save(circuit)
    return answer(circuit, 'done')
  end
  return move(circuit, 'closed', ARGV[3], 'done')
end

-- reason
function acts.reset()
  local circuit = load() or closed(now, '')
  if circuit.state ~= 'closed' then return move(circuit, 'closed', ARGV[3], 'done') end
  circuit = closed(circuit.epoch + 1, ARGV[3])
  save(circuit)
  return answer(circuit, 'done')
end

-- How it stands: {state, epoch, now, since, until, reason, consecutive, failed probes, probes under way}.
function acts.read()
  local circuit = load()
  if not circuit then return {} end
  local live = 0
  for _, expiry in pairs(circuit.probes) do
    if expiry > now then live = live + 1 end
  end
  return {
    circuit.state, circuit.epoch, now, circuit.since, circuit.till, circuit.reason, circuit.consecutive,
    circuit.failed_probes, live,
  }
end

-- Whether this server does what is needed here: writing, packing and scripting.
function acts.check()
  redis.call('SET', key, cmsgpack.pack({now}), 'PX', '1000')
  return {'done', 'closed', 0, now}
end

return acts[ARGV[1]]()
