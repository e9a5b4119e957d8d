"""Secure aggregation: the server learns the sum of what clients send, and nothing else of them.

`secure_sum` is for the simulator; `protocol` has the steps of clients and server of a federation.
"""

from fedjax_post.privacy.secure.shamir import ThresholdError
from fedjax_post.privacy.secure.sums import secure_sum
