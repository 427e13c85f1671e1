-- What every script of a session begins with. KEYS: list, log, hash; all in one slot.
-- Units: *_us microseconds, *_ms milliseconds since 1970; seq counts items from 1; index counts list positions from 0.
-- The hash: v version, e epoch, b birth (us), s last seq, n entries the list must hold, r removed ranges of seqs
--   between the first and the last one ("a-b,c-d"), u updated (ms), x expiry (ms, 0 none), m metadata, f format,
--   o tokens of the last operations ("token=answer@ms;..."), d 1 if deleted (then only v, d and o are there).
-- The log: member = digest of an item id, score = seq * 2^21 + 21 bits of its content's fingerprint.
-- Numbers above 10^14 are never turned into text but by %.0f: tostring, .. and cjson round them.

local LIST, LOG, HASH = KEYS[1], KEYS[2], KEYS[3]
local WINDOW = 64          -- ids remembered; at least the last call's
local OPERATIONS = 16      -- tokens remembered, however old,
local OPERATION_MS = 10000 -- and all younger ones (re-sending ends with the caller's deadline),
local MOST_OPERATIONS = 1000 -- but never more
local TOMBSTONE_MS = 60000 -- how long a deleted session's hash answers re-sent calls
local FINGERPRINTS = 2097152
local CHUNK = 1000         -- values given to unpack at once
local SLACK_MS = 50        -- TIME and PTTL need not be of the same instant
local UNSETTLED_MS = 3600000 -- how long the side keys wait for an expiry that other code may be about to give the list

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)

local function text(number) return string.format('%.0f', number) end

-- A number as the hash must hold it; nil for anything else.
local function whole(given)
  local number = tonumber(given or '')
  if number and number >= 0 and number < 2 ^ 53 and number == math.floor(number) then return number end
end

local function next_version(version) return math.max(version + 1, now_us) end

local function parse_ranges(given)
  local ranges = {}
  for from, to in string.gmatch(given, '(%d+)-(%d+)') do
    ranges[#ranges + 1] = { tonumber(from), tonumber(to) }
  end
  return ranges
end

local function format_ranges(ranges)
  local parts = {}
  for i, range in ipairs(ranges) do parts[i] = text(range[1]) .. '-' .. text(range[2]) end
  return table.concat(parts, ',')
end

local function first_seq(session)
  local gaps = 0
  for _, range in ipairs(session.ranges) do gaps = gaps + range[2] - range[1] + 1 end
  return session.seq - session.count - gaps + 1
end

-- How many entries of the list have a seq of at most this one.
local function entries_upto(session, seq)
  if seq >= session.seq then return session.count end
  local found = seq - first_seq(session) + 1
  for _, range in ipairs(session.ranges) do
    if range[1] <= seq then found = found - (math.min(range[2], seq) - range[1] + 1) end
  end
  return math.max(0, found)
end

local function seq_at(session, index)
  local seq = first_seq(session) + index
  for _, range in ipairs(session.ranges) do
    if seq >= range[1] then seq = seq + range[2] - range[1] + 1 end
  end
  return seq
end

local buried = false    -- the hash is a tombstone
local stale_log = false -- the log belongs to a session that is gone without a trace

-- The side keys take the list's expiry: other code moves that alone, and what it leaves behind must not stay for good.
-- A list without one is in the middle of that code's RPUSH and EXPIRE, or really has none: until we are told, the side
-- keys get a provisional one, which each use renews.
local function follow_expiry(session)
  local left = redis.call('PTTL', LIST)
  local expires = left < 0 and 0 or now_ms + math.max(1, left)
  if math.abs(expires - session.expires) > SLACK_MS then
    session.expires, session.moved = expires, true
    session.unsettled = expires == 0
  elseif expires == 0 then
    local waiting = redis.call('PTTL', HASH)
    session.unsettled = waiting >= 0 or waiting == -2 or buried
    session.moved = session.unsettled and waiting < UNSETTLED_MS / 2
  end
end

-- Looked at before anything is written, so that what cannot be answered is not stored either.
local function is_object(json)
  return json == '{}' or (string.sub(json, 1, 1) == '{' and (pcall(cjson.decode, json)))
end

-- Returns session (nil: there is none), the version that the next one must exceed, the tokens, and a refusal.
-- A list longer than the hash says was appended to by other code: its entries are adopted. A key of another type
-- fails one of these reads, so before anything is written.
local function load()
  local found, known = redis.call('LLEN', LIST), redis.call('ZCARD', LOG)
  local h = redis.call('HMGET', HASH, 'v', 'e', 'b', 's', 'n', 'r', 'u', 'x', 'm', 'o', 'd')
  local tokens, floor = h[10] or '', whole(h[1]) or 0
  buried = h[11]
  local kept = not buried and (h[1] or h[2] or h[3] or h[4] or h[5] or h[6] or h[7] or h[8])
  stale_log = known > 0 and not kept
  local session
  if kept then
    session = {
      version = whole(h[1]), epoch = whole(h[2]), birth = whole(h[3]), seq = whole(h[4]), count = whole(h[5]),
      updated = whole(h[7]), expires = whole(h[8]), metadata = h[9] or '{}', ranges = parse_ranges(h[6] or ''),
    }
    if not (session.version and session.epoch and session.birth and session.seq and session.count and session.updated
        and session.expires and h[6] and string.find(h[6], '^[%d,-]*$') and is_object(session.metadata)) or first_seq(session) < 1 then
      return nil, floor, tokens, { 'damaged' }
    end
    if found < session.count then return session, session.version, tokens, { 'lost', session.count, found } end
  elseif found > 0 then
    local version = next_version(floor)
    session = {
      version = version, epoch = version, birth = version, seq = 0, count = 0, updated = now_ms, expires = 0,
      metadata = '{}', ranges = {},
    }
  else
    return nil, floor, tokens, nil
  end
  if found > 0 then follow_expiry(session) end
  if found > session.count then
    session.adopted, session.whole = true, true
    session.version = next_version(session.version)
    session.updated = now_ms
    session.seq = session.seq + found - session.count
    session.count = found
  end
  return session, session.version, tokens, nil
end

local function expire(key, session)
  if session.expires > 0 then
    redis.call('PEXPIREAT', key, text(session.expires))
  elseif session.unsettled then
    if key ~= LIST then redis.call('PEXPIRE', key, UNSETTLED_MS) end
  elseif session.persist then
    redis.call('PERSIST', key)
  end
end

-- Write what every change moves, or the whole of it; without tokens, those of the hash stay.
local function save(session, tokens)
  redis.call('HSET', HASH, 'v', text(session.version), 's', text(session.seq), 'n', text(session.count),
    'u', text(session.updated), 'x', text(session.expires))
  if session.whole or tokens then
    redis.call('HSET', HASH, 'e', text(session.epoch), 'b', text(session.birth), 'r', format_ranges(session.ranges),
      'm', session.metadata, 'f', '1')
  end
  if tokens then redis.call('HSET', HASH, 'o', tokens) end
  if buried then
    redis.call('HDEL', HASH, 'd')
    session.persist = true -- the tombstone's expiry is not the session's
  end
  if stale_log then redis.call('UNLINK', LOG) end -- ids of a session that is gone say nothing about this one
  stale_log = false
  if session.moved then expire(LOG, session) end
  expire(HASH, session)
end

local function answer_of(tokens, token)
  for known, answer in string.gmatch(tokens, '([^=;]+)=([^;@]*)@%d+;') do
    if known == token then return answer end
  end
end

local function with_token(tokens, token, answer)
  local kept, young = {}, 1
  for known, at in string.gmatch(tokens, '([^;]+@(%d+));') do
    kept[#kept + 1] = known .. ';'
    if tonumber(at) > now_ms - OPERATION_MS then young = young + 1 end
  end
  kept[#kept + 1] = token .. '=' .. answer .. '@' .. text(now_ms) .. ';'
  return table.concat(kept, '', math.max(1, #kept - math.min(MOST_OPERATIONS, math.max(OPERATIONS, young)) + 1))
end

-- Make the next write succeed on a full memory: the server decides that before a script's first write only, and this
-- one, which changes nothing, is always allowed.
local function allow_when_full() redis.call('LTRIM', LIST, 0, -1) end

-- Keep what a call that changes nothing gives out: the version of adopted entries, and the expiry other code gave them.
local function settle(session)
  if session and (session.adopted or session.moved) then
    allow_when_full()
    save(session)
  end
end

-- The reply of every script: status, the session's fields, where the entries begin, the entries.
local function reply(status, session, start, entries)
  if not session then return { status } end
  return {
    status, session.version, session.epoch, session.birth, session.seq, session.count, session.updated,
    session.expires, session.metadata, format_ranges(session.ranges), start or 0, entries or {},
  }
end

-- A reader of another epoch, or one that is ahead (of a server rolled back, say), has to begin again.
local function begin_after(session, after, epoch)
  if epoch and (epoch ~= session.epoch or after > session.seq) then return 0 end
  return after
end

-- Entries with after < seq < before, at most the newest last ones: the index of the first, and the entries.
local function window(session, after, before, last)
  local from = entries_upto(session, after)
  local to = before and entries_upto(session, before - 1) or session.count
  if last then from = math.max(from, to - last) end
  if from >= to then return from, {} end
  return from, redis.call('LRANGE', LIST, from, to - 1)
end

-- What a writer that has seen everything up to after in epoch has missed.
local function news(session, after, epoch)
  if not session or not after then return 0, {} end
  return window(session, begin_after(session, after, epoch))
end
