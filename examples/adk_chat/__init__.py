"""A chat agent whose sessions live in SQL and a cache. `adk` looks for the agent in here."""

from . import agent as agent
