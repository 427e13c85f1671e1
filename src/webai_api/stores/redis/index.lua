-- Note that a session is active. KEYS: one bucket of the index. ARGV: session id; how long in ms it must be listed at
-- least ('inf': for good; '': not known yet, the answer to the session's own script will tell).
-- The bucket: member = session id, score = last activity in ms. It lives as long as the longest-lived session in it.
-- Returns three random members with their scores: the caller looks whether they still exist, so that the dead never
-- outnumber the living by much, listed or not. Nothing if there is no room for the note: it is for listing only, and
-- must not fail the call it travels with.
local INDEX, lifetime = KEYS[1], ARGV[2]
local UNKNOWN_MS = 60000
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local fresh = redis.call('EXISTS', INDEX) == 0
local noted = redis.pcall('ZADD', INDEX, 'GT', string.format('%.0f', now_ms), ARGV[1])
if type(noted) == 'table' and noted.err then return false end
if lifetime == 'inf' then
  redis.call('PERSIST', INDEX)
elseif lifetime ~= '' or fresh then
  local least, left = tonumber(lifetime) or UNKNOWN_MS, redis.call('PTTL', INDEX)
  if fresh or (left >= 0 and left < least) then redis.call('PEXPIRE', INDEX, least) end
end
return redis.call('ZRANDMEMBER', INDEX, 3, 'WITHSCORES')
