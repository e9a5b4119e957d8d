"""The contract suite and a toy federation, to test algorithms."""

from fedjax_post.testing.contract import CHECKS, Case
from fedjax_post.testing.toy import toy_clients, toy_loss, toy_model, toy_params
