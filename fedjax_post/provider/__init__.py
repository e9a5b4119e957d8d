"""Hosted models: the client side, which queries a provider, and the server side.

Client side: `hosted` is the model, `calls` makes the paid calls within their terms, and `journal`
records them. Server side: `served` is the model, `service` a provider with its terms, and `app`
its HTTP interface.
"""

from fedjax_post.provider.hosted import Hosted, connect
