"""A decoder's engine behind HTTP, as OpenAI's clients speak it. Needs shardwright[serve]."""
