-- ARGV: token, grant time, idle life, greatest age, then name and value of each field of the entry.
local _, live = masks()
if live ~= '' then
  return 'MASKED'
end
local lease = redis.call('HMGET', key, 'l', 'lt', 'ld')
-- A lease that was delivered twice may have been granted twice: only its time tells (R6).
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] or tonumber(lease[3] or '0') <= now then
  return 'REFUSED'
end
redis.call('DEL', key)
for at = 5, #ARGV, 2 do
  redis.call('HSET', key, ARGV[at], ARGV[at + 1])
end
redis.call('HSET', key, 'fa', int(now), 'va', ARGV[2])
extend(tonumber(ARGV[3]), tonumber(ARGV[4]))
return 'STORED'
