"""The disclosure ledger: which party received which of the clients' data, and at what cost."""

from fedjax_post.disclosure.ledger import DisclosureError, Entry, Form, Hosting, Price
