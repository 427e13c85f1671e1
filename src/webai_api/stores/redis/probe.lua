-- Run every command that the store uses, on keys no session can have, and leave nothing behind: an account that lacks
-- one of them is refused at the start instead of in the middle of a write. KEYS: list, log, hash, index.
local LIST, LOG, HASH, INDEX = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local commands = {
  { 'UNLINK', LIST, LOG, HASH }, -- first: cleaning up must be allowed, and a full memory does not fail what follows it
  { 'UNLINK', INDEX },
  { 'TIME' },
  { 'LTRIM', LIST, 0, -1 },
  { 'RPUSH', LIST, 'a' },
  { 'LSET', LIST, 0, 'b' },
  { 'LLEN', LIST },
  { 'LRANGE', LIST, 0, -1 },
  { 'PEXPIREAT', LIST, 4102444800000 },
  { 'PTTL', LIST },
  { 'PERSIST', LIST },
  { 'LREM', LIST, 0, 'b' },
  { 'ZADD', LOG, 1, 'a' },
  { 'ZMSCORE', LOG, 'a' },
  { 'ZSCORE', LOG, 'a' },
  { 'ZCARD', LOG },
  { 'ZRANGE', LOG, 0, -1 },
  { 'ZRANDMEMBER', LOG, 1, 'WITHSCORES' },
  { 'ZREMRANGEBYRANK', LOG, 1, -1 },
  { 'ZREM', LOG, 'a' },
  { 'HSET', HASH, 'a', 'b', 'c', 'd' },
  { 'HMGET', HASH, 'a' },
  { 'HDEL', HASH, 'a' },
  { 'EXISTS', HASH },
  { 'PEXPIRE', HASH, 60000 },
  { 'ZADD', INDEX, 'GT', 1, 'a' },
}
local function clean()
  redis.call('UNLINK', LIST, LOG, HASH)
  redis.call('UNLINK', INDEX)
end
for i, command in ipairs(commands) do
  local answer = redis.pcall(unpack(command))
  if type(answer) == 'table' and answer.err then
    if i > 2 then clean() end
    return redis.error_reply(answer.err .. ' (' .. command[1] .. ')') -- Redis 6.2 does not say which command it was
  end
end
clean()
return 1
