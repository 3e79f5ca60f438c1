-- One batch of the dedup protocol (base.py) on the records of one server, atomically.
--
-- KEYS[1]  optional, never read or written: where it is given, Redis Cluster routes by it, and
--          all records of the call share its hash tag
-- ARGV     1 settings, packed    2 prefix of every key
--          3 the entries of the batch in order, ENTRY bytes each:
--            record 16, token 12, fingerprint 4, kind 1; of a mark and a look: place 16, and of a
--            mark its revision 8
--          4 the same bytes, translated so that the hash tag of an entry's record is where its digest
--            begins: behind the time, TIME bytes, by which records are no more than ordered
--          5 the owners known to be dead, OWNER bytes each
-- returns  one byte an entry: its Answer, FIRST (fresh, attempt 1) or DETAILED; then, for each
--          DETAILED in order, 17 bytes: Answer, attempts, crashes, milliseconds to wait; or
--          REVISION, 0, 0, a revision
--
-- done     PREFIX{TAG}GENERATION, a hash: the last FIELD bytes of the record -> fingerprint.
--          Tag and field share all bytes but one: 85 bits at 32,768 slots tell one id from another.
-- held     PREFIX{TAG}:RECORD: token, deadline in ms (0: idle, nobody owns it), the span in ms that it
--          was away when it was set, attempts, crashes
--          The token is NOBODY where it is idle; where it was given back with a wait there is a
--          deadline too: the end of that
-- revision PREFIX{TAG}rPLACE: the highest that was marked, 8 bytes. It expires revision_retention
--          after it rose; a key of its own, so that all may have another one
--
-- A command called from a script costs more than what it does, so the claims of completed records
-- are read by one command and deleted by one.
local ENTRY, RECORD, TIME, TOKEN, OWNER, FIELD = 33, 16, 5, 12, 8, 10
local COMPLETE, CLAIM, SOLO, RELEASE, REFUND, RENEW = 67, 75, 83, 82, 70, 78   -- C K S R F N
local ASIDE, WAIT, FORGET = 65, 87, 88   -- A: completed without effect; W, whose fingerprint is the
                                         -- milliseconds to wait; X
local MARK = 77                          -- M; L is a look
local DUPLICATE, CONFLICT, KEPT, ALREADY_DONE, STALE = '\2', '\4', '\6', '\7', '\8'
local FIRST, DETAILED, FRESH, BUSY, SUSPECT, LATER = '\9', '\0', 1, 3, 5, 10
local NO_REVISION, REVISION = '\12', struct.pack('>BI4I4', 11, 0, 0)
local DEADLINE, HELD, DETAIL = '>I6', '>I6I6I4I4', '>BI4I4I8'
local NOBODY = string.rep('\0', TOKEN)
local MOST_KEYS = 1000   -- of one command: Lua's stack holds 8000

local call, sub, byte = redis.call, string.sub, string.byte
local pack, unpack, spread = struct.pack, struct.unpack, unpack

local opening, entries, tags, dead_owners = ARGV[2] .. '{', ARGV[3], ARGV[4], ARGV[5]
local claim_ttl, claim_memory, width, retention, revision_retention, margin, back, tag_length =
  unpack('>I8I8I8I8I8I8I2I2', ARGV[1])

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local deadline = now + claim_ttl
local generation = math.floor(now / width)
local generation_end = (generation + 1) * width
local current = string.format('%d', generation)
-- Where ids of the last `retention` can be. The next generation is looked into as well near the
-- border: a clock that stepped back (another server after a failover) must not hide its ids.
local generations = { current }
for age = 1, back do
  generations[age + 1] = string.format('%d', generation - age)
end
if generation_end - now < margin then
  generations[back + 2] = string.format('%d', generation + 1)
end
local held_for = string.format('%d', claim_ttl + claim_memory)
local idle_for = string.format('%d', claim_memory)
local revision_for = string.format('%d', revision_retention)
local done_until = string.format('%d', generation_end + math.max(width, retention))
local first_claim = pack(HELD, deadline, claim_ttl, 1, 0)

local dead = {}
for at = 1, #dead_owners, OWNER do
  dead[sub(dead_owners, at, at + OWNER - 1)] = true
end

-- The parts of the entry that begins at `at`.
local function base_of(at) return opening .. sub(tags, at + TIME, at + TIME + tag_length - 1) .. '}' end
local function record_of(at) return sub(entries, at, at + RECORD - 1) end
local function field_of(at) return sub(entries, at + RECORD - FIELD, at + RECORD - 1) end
local function token_of(at) return sub(entries, at + RECORD, at + RECORD + TOKEN - 1) end
local function fingerprint_of(at) return sub(entries, at + RECORD + TOKEN, at + ENTRY - 2) end
local function kind_of(at) return byte(entries, at + ENTRY - 1) end

local function done_fingerprint(base, field)
  for index = 1, #generations do
    local fingerprint = call('HGET', base .. generations[index], field)
    if fingerprint then return fingerprint end
  end
  return false
end

local function mark_done(base, field, fingerprint)
  local key = base .. current
  call('HSET', key, field, fingerprint)
  -- One expiry a key, set at its birth; but where the layout is made for less retention than
  -- ours, the key may be another's and has to live longer.
  if call('HLEN', key) == 1
     or (retention > width and call('PTTL', key) < generation_end + retention - now) then
    call('PEXPIREAT', key, done_until)
  end
end

local function hold(key, token, attempts, crashes)
  call('SET', key, token .. pack(HELD, deadline, claim_ttl, attempts, crashes), 'PX', held_for)
end

local answers, details = {}, {}

-- Completions: the batch begins with them.
local completed, keys = 0, {}
local kind = kind_of(1)
while kind == COMPLETE or kind == ASIDE do
  local at = completed * ENTRY + 1
  completed = completed + 1
  keys[completed] = base_of(at) .. ':' .. record_of(at)
  kind = kind_of(completed * ENTRY + 1)
end
local held, gone = {}, {}
for first = 1, completed, MOST_KEYS do
  local last = math.min(first + MOST_KEYS - 1, completed)
  local values = call('MGET', spread(keys, first, last))
  for index = first, last do held[keys[index]] = values[index - first + 1] end
end
for index = 1, completed do
  local at, key = (index - 1) * ENTRY + 1, keys[index]
  local base, field, value = base_of(at), field_of(at), held[key]
  local owner = value and sub(value, 1, TOKEN)
  if value and owner ~= token_of(at) and owner ~= NOBODY then
    answers[index] = STALE
  elseif not value and done_fingerprint(base, field) then
    answers[index] = ALREADY_DONE
  elseif owner ~= token_of(at) and kind_of(at) == ASIDE then
    answers[index] = STALE
  else
    mark_done(base, field, fingerprint_of(at))
    if value then
      held[key] = false
      gone[#gone + 1] = key
    end
    answers[index] = KEPT
  end
end
for first = 1, #gone, MOST_KEYS do
  call('DEL', spread(gone, first, math.min(first + MOST_KEYS - 1, #gone)))
end

local function change(at, kind, key, token)
  local value = call('GET', key)
  if not value or sub(value, 1, TOKEN) ~= token then return STALE end
  local _, _, attempts, crashes = unpack(HELD, value, TOKEN + 1)
  if kind == RENEW then
    hold(key, token, attempts, crashes)
    return KEPT
  end
  if kind == WAIT then
    local wait = unpack('>I4', fingerprint_of(at))
    local held_until = string.format('%d', wait + claim_memory)
    call('SET', key, NOBODY .. pack(HELD, now + wait, wait, attempts, crashes), 'PX', held_until)
    return KEPT
  end
  if kind == REFUND then attempts = attempts - 1 end
  if attempts == 0 then   -- then crashes is too: each came with an attempt
    call('DEL', key)
  else
    call('SET', key, NOBODY .. pack(HELD, 0, 0, attempts, crashes), 'PX', idle_for)
  end
  return KEPT
end

local function claim(at, base, key, token)
  local done = done_fingerprint(base, field_of(at))
  if done then
    return done == fingerprint_of(at) and DUPLICATE or CONFLICT
  end
  if call('SET', key, token .. first_claim, 'PX', held_for, 'NX') then return FIRST end
  local value = call('GET', key)
  local owner = sub(value, 1, TOKEN)
  local until_, span, attempts, crashes = unpack(HELD, value, TOKEN + 1)
  -- As Held.seen in base.py: the clock may have been set back.
  if until_ > now + span then
    until_ = now + span
    call('SETRANGE', key, TOKEN, pack(DEADLINE, until_))
  end
  local verdict, wait = FRESH, 0
  if owner == NOBODY and until_ > now then
    verdict, wait = LATER, until_ - now
  elseif owner == NOBODY then
    attempts = attempts + 1
  elseif owner ~= token then
    if until_ > now and not dead[sub(owner, 1, OWNER)] then
      verdict, wait = BUSY, until_ - now
    elseif kind_of(at) ~= SOLO then
      verdict = SUSPECT
    else
      attempts, crashes = attempts + 1, crashes + 1
    end
  end
  if verdict == FRESH then hold(key, token, attempts, crashes) end
  details[#details + 1] = pack(DETAIL, verdict, attempts, crashes, wait)
  return DETAILED
end

local function forget(at, base, key)
  local value = call('GET', key)
  if value and sub(value, 1, TOKEN) ~= NOBODY then return STALE end
  call('DEL', key)
  for index = 1, #generations do
    call('HDEL', base .. generations[index], field_of(at))
  end
  return KEPT
end

-- In halves: a number of Lua's is exact up to 2^53 alone, and texts are compared by the locale.
local function is_above(one, other)
  local high, low = unpack('>I4I4', one)
  local other_high, other_low = unpack('>I4I4', other)
  return high > other_high or (high == other_high and low > other_low)
end

local function mark(key, revision)
  local last = call('GET', key)
  if not last or not is_above(last, revision) then call('SET', key, revision, 'PX', revision_for) end
  return KEPT
end

local function look(key)
  local last = call('GET', key)
  if not last then return NO_REVISION end
  details[#details + 1] = REVISION .. last
  return DETAILED
end

for at = completed * ENTRY + 1, #entries, ENTRY do
  local kind, base, token = kind_of(at), base_of(at), token_of(at)
  local key = base .. ':' .. record_of(at)
  if kind == CLAIM or kind == SOLO then
    answers[#answers + 1] = claim(at, base, key, token)
  elseif kind == RELEASE or kind == REFUND or kind == WAIT or kind == RENEW then
    answers[#answers + 1] = change(at, kind, key, token)
  elseif kind == FORGET then
    answers[#answers + 1] = forget(at, base, key)
  elseif kind == MARK then
    answers[#answers + 1] = mark(base .. 'r' .. record_of(at), sub(token, 1, 8))
  else
    answers[#answers + 1] = look(base .. 'r' .. record_of(at))
  end
end

return table.concat(answers) .. table.concat(details)
