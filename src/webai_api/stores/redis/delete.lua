-- Delete a session. KEYS: list, log, hash. ARGV: expected version ('' not given), operation token.
-- Replies: deleted with 1 or 0 (there was none); conflict; damaged (only if a version is expected).
-- The hash stays as a tombstone for a minute: a re-sent delete that finds its token there gets its first answer and
-- touches nothing, so it can never remove what was appended after its first try; and versions go on rising.
local expected, token = tonumber(ARGV[1]), ARGV[2]

local ok, session, floor, tokens, refusal = pcall(load)
if not ok then
  local why = session
  if not string.find(type(why) == 'table' and why.err or why, 'WRONGTYPE', 1, true) then error(why) end
  if expected then return { 'damaged' } end
  redis.call('UNLINK', LIST, LOG, HASH) -- which of them is of another type does not matter
  session, floor, tokens, refusal = nil, 0, '', { 'damaged' }
end
local first_answer = answer_of(tokens, token)
if first_answer then return { 'deleted', first_answer == '+' and 1 or 0 } end
local damaged = refusal and refusal[1] == 'damaged'
if expected and damaged then return refusal end
if expected and expected ~= (session and session.version or 0) then
  if not refusal then settle(session) end
  return reply('conflict', session)
end

-- Only deletions are remembered beyond the session: their answers are + (it existed) and -.
local deletions = {}
for deletion in string.gmatch(tokens, '[^=;]+=[+-]@%d+;') do deletions[#deletions + 1] = deletion end
local existed = session or damaged
allow_when_full()
redis.call('HSET', HASH, 'd', '1', 'v', text(floor), 'o', with_token(table.concat(deletions), token, existed and '+' or '-'))
redis.call('PEXPIRE', HASH, TOMBSTONE_MS)
redis.call('HDEL', HASH, 'e', 'b', 's', 'n', 'r', 'u', 'x', 'm', 'f')
redis.call('UNLINK', LIST, LOG)
return { 'deleted', existed and 1 or 0 }
