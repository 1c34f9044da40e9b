-- ARGV: token, grant time, idle life, greatest age, then name and value of each field of the entry.
local was = redis.call('HMGET', key, 'p', 'l', 'lt', 'ld')
local _, live = masks(was[1])
if live ~= '' then
  return 'MASKED'
end
-- A lease that was delivered twice may have been granted twice: only its time tells (R6).
if was[2] ~= ARGV[1] or was[3] ~= ARGV[2] or tonumber(was[4] or '0') <= now then
  return 'REFUSED'
end
redis.call('DEL', key)
-- Lua hands on some thousand values at once.
for at = 5, #ARGV, 1000 do
  redis.call('HSET', key, unpack(ARGV, at, math.min(at + 999, #ARGV)))
end
redis.call('HSET', key, 'fa', int(now), 'va', ARGV[2])
extend(now, tonumber(ARGV[3]), tonumber(ARGV[4]))
return 'STORED'
