"""`indexmem serve`: the OpenAI chat-completions protocol and a page, over one model.

HTTP → protocol → shelf (documents) → worker (one thread, one request at a time) → events → HTTP.
"""
