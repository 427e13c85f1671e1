-- Append items as one unit. KEYS: list, log, hash.
-- ARGV: expected version, after seq, epoch, ttl in ms ('inf': no expiry), keep, metadata as JSON, operation token,
--   1 if the call is sent again, number of items; then four for each item: digest of its id, 21 bits of fingerprint,
--   head, tail. '' where an option is not given. The token is used by calls without items only; items are known by
--   their ids.
-- Replies: ok | created (or adopted from other code) | repeat | conflict, each with the session and the news; reused |
--   partly, with the positions of the items concerned; lost; damaged.
local expected, after, epoch = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local ttl, keep, metadata, token, items = ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7], tonumber(ARGV[9])
local sent_again = ARGV[8] ~= ''
local function arg(item, part) return ARGV[9 + (item - 1) * 4 + part] end

local session, floor, tokens, refusal = load()
if refusal then return refusal end

local function repeated()
  allow_when_full()
  local expires = ttl == 'inf' and 0 or ttl ~= '' and now_ms + tonumber(ttl)
  if expires and session.expires > 0 and (expires == 0 or expires > session.expires) then
    session.expires, session.persist = expires, true
    expire(LIST, session)
    expire(LOG, session)
  end
  save(session) -- also so that a WAIT after this call covers the first copy
  return reply('repeat', session, news(session, after, epoch))
end

local RESENT_MS = 60000 -- longer than a call is sent again
local SCAN = 100        -- entries looked at in one LRANGE

-- Is this entry item i, word for word? Returns also when it was stored (ms), if we wrote it.
local function is_item(entry, i)
  local at = string.match(entry, '^{"id":.-,"~at":(%d+)')
  return at and entry == arg(i, 3) .. at .. arg(i, 4), tonumber(at)
end

-- Is the call in the list? On a busy session its ids may have left the log between our two tries. What was stored
-- before the first try cannot be it, so the work is bounded by what came since.
local function stored_before()
  local to = session.count - 1
  while to >= 0 do
    local from = math.max(0, to - SCAN + 1)
    local entries = redis.call('LRANGE', LIST, from, to)
    for j = #entries, 1, -1 do
      local last, at = is_item(entries[j], items)
      if at and at < now_ms - RESENT_MS then return false end
      local start = from + j - items
      if last and start >= 0 then
        for i, entry in ipairs(redis.call('LRANGE', LIST, start, from + j - 1)) do
          if not is_item(entry, i) then return false end
        end
        return true
      end
    end
    to = from - 1
  end
  return false
end

-- Is the call known: as a whole, in part, or with other content?
if items == 0 then
  if session and answer_of(tokens, token) then return repeated() end
elseif session and not stale_log then
  local known, offset, partly, reused = {}, nil, false, {}
  for from = 1, items, CHUNK do
    local digests = {}
    for i = from, math.min(from + CHUNK - 1, items) do digests[#digests + 1] = arg(i, 1) end
    for j, score in ipairs(redis.call('ZMSCORE', LOG, unpack(digests))) do
      if score then
        local i, number = from + j - 1, tonumber(score)
        local seq = math.floor(number / FINGERPRINTS)
        known[#known + 1] = i
        if number - seq * FINGERPRINTS ~= tonumber(arg(i, 2)) then reused[#reused + 1] = i end
        if offset and seq - i ~= offset then partly = true end
        offset = offset or seq - i
      end
    end
  end
  if #reused > 0 then return { 'reused', reused } end
  if partly or (#known > 0 and #known < items) then return { 'partly', known } end
  if #known > 0 then return repeated() end
  if sent_again and stored_before() then return repeated() end
end

if expected and expected ~= (session and session.version or 0) then
  settle(session) -- or the caller could never name the version it is told
  return reply('conflict', session, news(session, after, epoch))
end
local created = not session
if created then
  local version = next_version(floor)
  session = {
    version = version, epoch = version, birth = version, seq = 0, count = 0, updated = now_ms, expires = 0,
    metadata = '{}', ranges = {}, whole = true,
  }
elseif items > 0 or metadata ~= '' or (keep and session.count > keep) then
  session.version, session.updated = next_version(session.version), now_ms
end
after = after and begin_after(session, after, epoch)
if ttl == 'inf' then
  session.expires, session.persist, session.unsettled = 0, true, false
elseif ttl ~= '' then
  session.expires = now_ms + tonumber(ttl)
end
if metadata ~= '' then session.metadata, session.whole = metadata, true end

-- Everything is valid: write, in the order list, log, hash. The first write decides whether there is memory for it.
if items == 0 then save(session, with_token(tokens, token, '')) end
local base = session.seq
for from = 1, items, CHUNK do
  local packed = {}
  for i = from, math.min(from + CHUNK - 1, items) do packed[#packed + 1] = arg(i, 3) .. text(now_ms) .. arg(i, 4) end
  redis.call('RPUSH', LIST, unpack(packed))
end
session.seq, session.count = base + items, session.count + items
if keep and session.count > keep then
  local first = seq_at(session, session.count - keep)
  redis.call('LTRIM', LIST, -keep, -1)
  session.count = keep
  local ranges = {}
  for _, range in ipairs(session.ranges) do
    if range[1] > first then ranges[#ranges + 1] = range end
  end
  session.ranges, session.whole = ranges, true
end
if items > 0 or ttl ~= '' then expire(LIST, session) end

if items > 0 then
  -- The ids of a session that is gone go one by one: see below.
  local strangers = stale_log and redis.call('ZRANGE', LOG, 0, -1) or {}
  if stale_log then session.persist, stale_log = true, false end -- its expiry is not this session's
  -- Trimmed before it grows, so that it stays a listpack; but never emptied and written again (a migrating slot
  -- would lose it), so a call as large as the window is trimmed afterwards.
  local kept = WINDOW - items
  if kept > 0 and #strangers == 0 then redis.call('ZREMRANGEBYRANK', LOG, 0, -kept - 1) end
  local ours = {}
  for from = 1, items, CHUNK / 2 do
    local scored = {}
    for i = from, math.min(from + CHUNK / 2 - 1, items) do
      scored[#scored + 1] = text((base + i) * FINGERPRINTS + tonumber(arg(i, 2)))
      scored[#scored + 1] = arg(i, 1)
      ours[arg(i, 1)] = true
    end
    redis.call('ZADD', LOG, unpack(scored))
  end
  for _, digest in ipairs(strangers) do
    if not ours[digest] then redis.call('ZREM', LOG, digest) end
  end
  if kept <= 0 then redis.call('ZREMRANGEBYRANK', LOG, 0, -items - 1) end
end
if items > 0 or ttl ~= '' then expire(LOG, session) end

if items > 0 or keep then save(session) end
local start, entries
if after then start, entries = window(session, after, base + 1) end -- what the others stored and keep left
return reply((created or session.adopted) and 'created' or 'ok', session, start, entries)
