-- The numbers of parked messages of one service (base.py: add_parked, unpark), atomically.
--
-- KEYS[1]  a hash: parked key -> number     ARGV  1 the parked key    2 the change, or "unpark"
-- returns  the new number; for "unpark" 1 where the key stood at zero and is forgotten, else 0
local number = redis.call('HGET', KEYS[1], ARGV[1])
if ARGV[2] == 'unpark' then
  if number ~= '0' then return 0 end
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
number = math.max(0, (tonumber(number) or 0) + tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d', number))
return number
