-- The retry budget of a target, for Redis: one atomic script that `circuit_scripts.py` calls.
-- The same rules are in `tests/workers/breakers/retry_budget_model.py` and, while Redis is away, in
-- `retry_budgets.py`: change all three.
--
-- KEYS[1]  the budget, a hash of balance (tokens), at (microseconds), rate (tokens a second that calls deposit)
-- ARGV     now in microseconds or '' for the server's clock, calls to deposit for, ratio, floor_per_second,
--          1 if a retry is asked for, 0 if calls are only deposited for
--
-- Answers the seconds that the retry is put off, as text.

local LONGEST = 3600
local REMEMBERED = 10
local FORGET_MS = 7200000 -- longer than any retry is put off

local key = KEYS[1]
local now
if ARGV[1] == '' then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
else
  now = tonumber(ARGV[1])
end
local calls, ratio, floor, asked = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == '1'

local kept = redis.call('HMGET', key, 'balance', 'at', 'rate')
local full = math.max(1, floor * REMEMBERED + ratio * 100)
local balance = tonumber(kept[1] or '') or math.max(1, floor * REMEMBERED)
local at = tonumber(kept[2] or '') or now
local rate = tonumber(kept[3] or '') or 0

local passed = math.max(0, now - at) / 1000000
local deposited = calls * ratio
balance = math.min(full, balance + passed * floor + deposited)
rate = rate * math.exp(-passed / REMEMBERED) + deposited / REMEMBERED

local wait = 0
if asked then
  local income = floor + rate
  if balance < 1 then
    wait = LONGEST
    if income > 0 then wait = math.min(LONGEST, (1 - balance) / income) end
  end
  balance = math.max(balance - 1, math.min(balance, -LONGEST * income))
end
redis.call(
  'HSET', key, 'balance', string.format('%.17g', balance), 'at', string.format('%.0f', now),
  'rate', string.format('%.17g', rate)
)
redis.call('PEXPIRE', key, FORGET_MS)
return string.format('%.17g', wait)
