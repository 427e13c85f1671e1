-- Read a window of a session. KEYS: list, log, hash.
-- ARGV: after seq, before seq, last n, epoch; '' where not given.
-- Replies: ok with the session and the entries; adopted, the same where entries of other code were found; none; lost;
--   damaged.
local session, _, tokens, refusal = load()
if refusal then return refusal end
if not session then return { 'none' } end
settle(session)
local after = begin_after(session, tonumber(ARGV[1]), tonumber(ARGV[4]))
local start, entries = window(session, after, tonumber(ARGV[2]), tonumber(ARGV[3]))
return reply(session.adopted and 'adopted' or 'ok', session, start, entries)
