-- ARGV: how many of the newest events, then the names of fields. Returns those fields and, if there is an
-- entry that no mask hides, the last chunks, which hold so many events. Writes nothing.
local CHUNK = 4

local found = redis.call('HMGET', key, unpack(ARGV, 2))
local p, n, k0, k1 = unpack(redis.call('HMGET', key, 'p', 'n', 'k0', 'k1'))
if n and not p then
  k0, k1 = tonumber(k0), tonumber(k1)
  local held = tonumber(n) - CHUNK * (k1 - k0) -- lines in the last chunk; all before it are full
  local first = k1 - math.ceil((tonumber(ARGV[1]) - held) / CHUNK)
  for number = math.max(k0, first), k1 do
    found[#found + 1] = redis.call('HGET', key, 'c' .. int(number))
  end
end
return found
