"""The session actor, in four jobs kept apart.

`acceptance` takes prompts in, `driver` carries out what the turn machine wants (with `model_call`, `tool_calls` and
`reduction`), `settling` and `ending` decide and write how a turn ended, `writer` keeps the journal and publishes. `state`
is the fold of the `records`; `handle` is the face users see.
"""
