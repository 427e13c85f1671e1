-- Note that a session is active. KEYS: one bucket of the index. ARGV: session id, the session's ttl in ms ('' none).
-- The bucket: member = session id, score = last activity in ms. It lives as long as the longest-lived session in it.
-- Returns three random members with their scores: the caller looks whether they still exist, so that the dead never
-- outnumber the living by much, listed or not.
local INDEX = KEYS[1]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local fresh = redis.call('EXISTS', INDEX) == 0
redis.call('ZADD', INDEX, 'GT', string.format('%.0f', now_ms), ARGV[1])
if ARGV[2] == '' then
  redis.call('PERSIST', INDEX)
else
  local left = redis.call('PTTL', INDEX)
  if fresh or (left >= 0 and left < tonumber(ARGV[2])) then redis.call('PEXPIRE', INDEX, ARGV[2]) end
end
return redis.call('ZRANDMEMBER', INDEX, 3, 'WITHSCORES')
