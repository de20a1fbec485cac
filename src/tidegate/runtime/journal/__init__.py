"""The journal: what must survive the end of the server, in one SQLite file in the state folder.

`schema` has the tables and their versions, `codec` turns events into bytes, `records` are the rows that go
with an event, `recovery` reads everything back, `journal` is the one writer with its thread.
"""
