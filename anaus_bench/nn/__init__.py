"""Building blocks that two plugins or more share: encoder, heads, EMA, LARS, schedules, pooling, contrastive losses."""
