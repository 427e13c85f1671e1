-- Remove items by id. KEYS: list, log, hash.
-- ARGV: expected version ('' not given), operation token ("." begins a caller's own), number of ids; then two for each id: the head of its entry,
--   and for the id "~BIRTH.SEQ" of an entry that other code wrote, its BIRTH.SEQ ('' otherwise).
-- Replies: ok with the session, and the positions of the ids removed, oldest entry first; none; conflict; lost; damaged.
-- Of several entries with one id (reused long after), the newest is removed. Ids stay in the log: late retries of
-- what was removed are still repeats. The work is one pass over the entries newer than the oldest one wanted.
local expected, token, wanted = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local SCAN = 100        -- entries looked at in one LRANGE
local MAX_RANGES = 64   -- above it the survivors are numbered anew
local AT = ',"~at":'

local session, _, tokens, refusal = load()
if refusal then return refusal end
local first_answer = session and answer_of(tokens, token)
if first_answer then
  local positions = {}
  for position in string.gmatch(first_answer, '%d+') do positions[#positions + 1] = tonumber(position) end
  return reply('ok', session, 0, positions)
end
if expected and expected ~= (session and session.version or 0) then
  settle(session) -- or the caller could never name the version it is told
  return reply('conflict', session)
end
if not session then return { 'none' } end

local by_head, by_seq, missing = {}, {}, 0
for i = 1, wanted do
  local head, seq = ARGV[2 + i * 2], ARGV[3 + i * 2]
  if not by_head[head] then
    by_head[head], missing = i, missing + 1
    if seq ~= '' then by_seq[seq] = i end
  end
end

local found = {} -- of { index, position }, newest entry first
local function look(index, entry)
  local at = string.find(entry, AT, 1, true)
  local position = at and by_head[string.sub(entry, 1, at + #AT - 1)]
  if position then
    by_head[string.sub(entry, 1, at + #AT - 1)] = nil
  elseif next(by_seq) and not (at and string.sub(entry, 1, 6) == '{"id":') then
    local seq = text(session.birth) .. '.' .. text(seq_at(session, index))
    position, by_seq[seq] = by_seq[seq], nil
  end
  if position then
    found[#found + 1] = { index, position }
    missing = missing - 1
  end
end
local to = session.count - 1
while to >= 0 and missing > 0 do
  local from = math.max(0, to - SCAN + 1)
  local entries = redis.call('LRANGE', LIST, from, to)
  for i = #entries, 1, -1 do
    if missing > 0 then look(from + i - 1, entries[i]) end
  end
  to = from - 1
end

-- An unnamed removal that found nothing may be executed again as well as remembered.
local named = string.sub(token, 1, 1) == '.'
if #found == 0 and not named and not session.adopted then return reply('ok', session) end

allow_when_full()
local positions, gone = {}, {}
for i = #found, 1, -1 do
  positions[#positions + 1] = found[i][2]
  local seq = seq_at(session, found[i][1])
  gone[#gone + 1] = { seq, seq }
end
if #found > 0 then
  -- Never DEL and RPUSH: in a slot that is migrating that loses the list.
  local marker = '~removed:' .. token
  for _, hit in ipairs(found) do redis.call('LSET', LIST, hit[1], marker) end
  redis.call('LREM', LIST, 0, marker)
  for _, range in ipairs(session.ranges) do gone[#gone + 1] = range end
  table.sort(gone, function(a, b) return a[1] < b[1] end)
  session.count = session.count - #found
  session.version = next_version(session.version)
  session.epoch, session.updated = session.version, now_ms
  -- Join neighbours; what lies before the first survivor is no gap any more.
  local first = session.seq - session.count + 1
  for _, range in ipairs(gone) do first = first - (range[2] - range[1] + 1) end
  local ranges = {}
  for _, range in ipairs(gone) do
    local before = ranges[#ranges]
    if range[1] == first then
      first = range[2] + 1
    elseif before and before[2] + 1 == range[1] then
      before[2] = range[2]
    else
      ranges[#ranges + 1] = range
    end
  end
  if #ranges > MAX_RANGES then session.seq, ranges = session.seq + session.count, {} end
  session.ranges = ranges
end
save(session, with_token(tokens, token, table.concat(positions, ',')))
return reply('ok', session, 0, positions)
