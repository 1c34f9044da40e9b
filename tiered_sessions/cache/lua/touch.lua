-- ARGV: tag (4), validated at, stamp, idle life, greatest age. Notes that the entry equals SQL.
local was = redis.call('HMGET', key, 'i', 'r', 'g', 'ut', 'va', 'fa')
if not tag_is(was, 1, 1) then
  return 0
end
redis.call('HSET', key, 'va', int(math.max(tonumber(was[5]), tonumber(ARGV[5]))), 'sv', ARGV[6])
extend(was[6], tonumber(ARGV[7]), tonumber(ARGV[8]))
return 1
