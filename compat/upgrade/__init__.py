"""Live upgrade: the running bus hands its whole state to a new process, which goes on with it.

`giver` is the old process's side, `taker` the new one's, and `channel` is between them; `form` is
what the state looks like on its way, `peers`, `activations` and `document` say what is in it. A
`keeper` stays where somebody knows the first process by its pid. `command` is `jitney upgrade`.
"""
