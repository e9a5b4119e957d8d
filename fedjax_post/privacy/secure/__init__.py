"""Secure aggregation: the server learns the sum of what clients send, and nothing else of them."""

from fedjax_post.privacy.secure.sums import secure_sum
