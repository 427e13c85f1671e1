-- Forget dead sessions. KEYS: one bucket of the index. ARGV: pairs of session id and the score in ms it was seen with.
-- One that was active since, so whose score is another, stays; so does a very young one, which may be noted already
-- and created in the next moment.
local YOUNG_MS = 10000
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #ARGV, 2 do
  local old = tonumber(ARGV[i + 1]) < now_ms - YOUNG_MS
  if old and redis.call('ZSCORE', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return 1
