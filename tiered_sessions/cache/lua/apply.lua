-- ARGV: 1 token · 2-5 old tag, all '' for a shared scope · 6-9 new tag · 10 '1' if 11 is the new state
-- · 12 validated at · 13 idle life · 14 greatest age · 15 window events · 16 window bytes
-- · 17 when the session expires now, '' if that did not change · 18.. lines
local CHUNK = 4

-- Compares whole numbers as text: timestamps may need more than the 53 bits of a Lua number.
local function above(a, b)
  local negative = string.sub(a, 1, 1) == '-'
  if negative ~= (string.sub(b, 1, 1) == '-') then
    return not negative
  end
  if negative then
    a, b = string.sub(b, 2), string.sub(a, 2)
  end
  if #a ~= #b then
    return #a > #b
  end
  return a > b
end

local was = redis.call('HMGET', key, 'p', 'i', 'r', 'g', 'ut', 'n', 'k0', 'k1', 'b', 'c', 'mt', 'va', 'fa')
-- The own mask goes first: however late, this writer is alive and tells what it wrote.
local _, live, expired = masks(was[1], ARGV[1])
if expired then
  forget(live)
  return 'ABSENT'
end
if not was[3] then
  control(live)
  return 'ABSENT'
end
if tag_is(was, 2, 6) then
  control(live)
  extend(was[13], tonumber(ARGV[13]), tonumber(ARGV[14]))
  return 'OLD'
end
local successor
if ARGV[2] == '' then
  successor = was[2] == ARGV[6] and tonumber(was[3]) < tonumber(ARGV[7])
else
  successor = tag_is(was, 2, 2)
end
if not successor then
  forget(live)
  return 'GAP'
end
control(live)

local n, k0, k1, b = tonumber(was[6]), tonumber(was[7]), tonumber(was[8]), tonumber(was[9])
local complete, before = was[10] == '1', was[11]

if ARGV[10] == '1' then
  b = b - redis.call('HSTRLEN', key, 'st') + #ARGV[11]
  redis.call('HSET', key, 'st', ARGV[11])
end

local at = 18
while at <= #ARGV do
  local held = n - CHUNK * (k1 - k0) -- lines in the last chunk; CHUNK if there is none
  if held >= CHUNK then
    k1, held = k1 + 1, 0
  end
  local parts = {held > 0 and redis.call('HGET', key, 'c' .. int(k1)) or ''}
  while at <= #ARGV and held < CHUNK do
    parts[#parts + 1] = ARGV[at]
    b, n, held, at = b + #ARGV[at], n + 1, held + 1, at + 1
  end
  redis.call('HSET', key, 'c' .. int(k1), table.concat(parts))
end

-- Takes up to `limit` lines from the front of the first chunk.
local function shorten(limit)
  local field = 'c' .. int(k0)
  local chunk = redis.call('HGET', key, field)
  local from, newest = 1, nil
  while limit > 0 and from <= #chunk do
    local timestamp = string.match(chunk, '^%d+\t(-?%d+)\t', from)
    if not newest or above(timestamp, newest) then
      newest = timestamp
    end
    from = string.find(chunk, '\n', from, true) + 1
    n, limit = n - 1, limit - 1
  end
  b = b - (from - 1)
  if from > #chunk then
    redis.call('HDEL', key, field)
    k0 = k0 + 1
  else
    redis.call('HSET', key, field, string.sub(chunk, from))
  end
  -- Unknown ('') stays unknown: what was left out earlier may be younger.
  if complete or (before ~= '' and above(newest, before)) then
    before = newest
  end
  complete = false
end

local window_events, window_bytes = tonumber(ARGV[15]), tonumber(ARGV[16])
while k0 <= k1 and (n - CHUNK >= window_events or (b > window_bytes and k0 < k1)) do
  shorten(CHUNK)
end
while b > window_bytes and n > 0 do
  shorten(1)
end

local va = math.max(tonumber(was[12]), tonumber(ARGV[12]))
redis.call('HSET', key, 'i', ARGV[6], 'r', ARGV[7], 'g', ARGV[8], 'ut', ARGV[9], 'va', int(va),
  'n', int(n), 'k0', int(k0), 'k1', int(k1), 'b', int(b), 'c', complete and '1' or '0', 'mt', before)
if ARGV[17] ~= '' then
  redis.call('HSET', key, 'ex', ARGV[17])
end
extend(was[13], tonumber(ARGV[13]), tonumber(ARGV[14]))
return 'APPLIED'
