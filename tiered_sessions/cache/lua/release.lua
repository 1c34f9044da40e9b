-- ARGV: token. Takes one mask away, expired or not: its write is known to have changed nothing.
local packed = masks(ARGV[1])
set_masks(packed)
return 'OK'
