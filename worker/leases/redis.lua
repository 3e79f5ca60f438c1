-- The rules of worker/leases/rules.py, for one service in Redis. Times are whole milliseconds.
--
-- KEYS  PREFIXleases:{SERVICE}:clock, :members, :leases, :documents (hashes)
-- ARGV  command, ttl, how long the server must have been up before it grants a lease, then
--   sync   member, facts, leaving (0/1), the numbers of releases, renewals and acquisitions, and
--          these: name, epoch (releases and renewals); name (acquisitions)
--   look
--   write  name, version, text
--
-- Replies {watched, settling, members, leases, documents}, the last three as HGETALL gives them;
-- a write replies 1 or 0. Where a value cannot be read, nothing of what was said is done,
-- and the error "UNREADABLE clock|members|leases|documents NAME" tells which.
-- Values: members "until facts", leases "until epoch owner" (no owner: free),
-- documents "version text". The clock has the fields watched, read_at and granted, the highest epoch
-- of all leases that there were. Numbers are below 2^53, so Lua keeps them exactly.

local CLOCK, MEMBERS, LEASES, DOCUMENTS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local STEP_SHARE, MEMORY_LENGTHS = 8, 1000

local command, ttl, settle = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function unreadable(kind, name) return redis.error_reply('UNREADABLE ' .. kind .. ' ' .. name) end

local function text(number) return string.format('%.0f', number) end

local function pairs_of(key)
  local flat = redis.call('HGETALL', key)
  local at = 0
  return function()
    at = at + 2
    return flat[at - 1], flat[at]
  end
end

if command == 'write' then
  local name, version, content = ARGV[4], tonumber(ARGV[5]), ARGV[6]
  local found = redis.call('HGET', DOCUMENTS, name)
  local current = tonumber(string.match(found or '0 ', '^(%d+) '))
  if not current then return unreadable('documents', name) end
  if current ~= version then return 0 end
  redis.call('HSET', DOCUMENTS, name, text(version + 1) .. ' ' .. content)
  return 1
end

local clock = {watched = '0', granted = '0'}
for name, value in pairs_of(CLOCK) do
  clock[name] = string.match(value, '^%d+$')
  if not clock[name] then return unreadable('clock', name) end
end
local watched = tonumber(clock.watched)

local function reply(settling)
  return {
    text(watched), text(settling),
    redis.call('HGETALL', MEMBERS), redis.call('HGETALL', LEASES), redis.call('HGETALL', DOCUMENTS),
  }
end

if command == 'look' then return reply(0) end

local member, facts, leaving = ARGV[4], ARGV[5], ARGV[6]

-- Watch the time that passed since the last call.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local read_at = tonumber(clock.read_at or now)
watched = watched + math.min(math.max(now - read_at, 0), math.floor(ttl / STEP_SHARE))
local till = watched + ttl

-- Forget what is long over.
for id, value in pairs_of(MEMBERS) do
  local ends = tonumber(string.match(value, '^(%d+) '))
  if not ends then return unreadable('members', id) end
  if ends <= watched then redis.call('HDEL', MEMBERS, id) end
end
local leases, granted = {}, tonumber(clock.granted)
for name, value in pairs_of(LEASES) do
  local ends, epoch, owner = string.match(value, '^(%d+) (%d+) (.*)$')
  if not ends then return unreadable('leases', name) end
  granted = math.max(granted, tonumber(epoch)) -- a program of before does not write it
  if tonumber(ends) <= watched - ttl * MEMORY_LENGTHS then
    redis.call('HDEL', LEASES, name)
  else
    leases[name] = {till = tonumber(ends), epoch = tonumber(epoch), owner = owner}
  end
end

local function hold(name, owner, epoch, ends)
  leases[name] = {till = ends, epoch = epoch, owner = owner}
  granted = math.max(granted, epoch)
  redis.call('HSET', LEASES, name, text(ends) .. ' ' .. text(epoch) .. ' ' .. owner)
end

-- A server that has not been up for as long as a lease lasts may have forgotten who owns what, in
-- part or in whole. Whoever does own something says so within that time.
local settling = 0
local info = redis.pcall('INFO', 'server') -- a user may be forbidden to ask
local uptime = type(info) == 'string' and string.match(info, 'uptime_in_seconds:(%d+)')
if uptime then settling = math.max(0, settle - tonumber(uptime) * 1000) end

local at = 10
local function following(count)
  return function()
    if count == 0 then return nil end
    count = count - 1
    at = at + 2
    return ARGV[at - 2], tonumber(ARGV[at - 1])
  end
end

for name, epoch in following(tonumber(ARGV[7])) do
  local lease = leases[name]
  if lease and lease.owner == member and lease.epoch == epoch then
    hold(name, '', epoch, watched)
  end
end
for name, epoch in following(tonumber(ARGV[8])) do
  local lease = leases[name]
  if not lease or (lease.owner == member and lease.epoch == epoch) then
    hold(name, member, epoch, till)
  end
end
-- One epoch for all that is new: one each would run ahead of the clock, which is all that is left to
-- go by where everything is forgotten.
local new = math.max(now, granted + 1)
for index = at, at + tonumber(ARGV[9]) - 1 do
  local name = ARGV[index]
  local lease = leases[name]
  local owned = lease and lease.owner ~= '' and lease.till > watched
  if owned then
    if lease.owner == member then hold(name, member, lease.epoch, till) end
  elseif settling == 0 then
    hold(name, member, new, till)
  end
end

if leaving == '1' then
  redis.call('HDEL', MEMBERS, member)
else
  redis.call('HSET', MEMBERS, member, text(till) .. ' ' .. facts)
end
redis.call('HSET', CLOCK, 'watched', text(watched), 'read_at', text(now), 'granted', text(granted))
return reply(settling)
