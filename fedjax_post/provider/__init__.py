"""Hosted models: the side that asks a provider, and the side that is one.

Asking: `hosted` is the model, `calls` the paid calls on their terms, `journal` what was paid.
Being asked: `served` is the model, `service` a provider and its terms, `app` its HTTP face.
"""

from fedjax_post.provider.hosted import Hosted, connect
