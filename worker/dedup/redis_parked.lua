-- The parked keys of one service (base.py: mark_parked, unpark), atomically.
--
-- KEYS[1]  a hash: parked key -> the last number that it was parked at
-- ARGV     1 the parked key    2 "mark" or "unpark"    3 the number
-- returns  for "unpark" 1 where the key was not parked after the number and is forgotten, else 0
--
-- Numbers are below 2^53, so Lua's own can tell them apart.
local known = tonumber(redis.call('HGET', KEYS[1], ARGV[1]))
local number = tonumber(ARGV[3])
if ARGV[2] == 'unpark' then
  if not known or known > number then return 0 end
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
if not known or known < number then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
return 0
