"""The disclosure ledger: who saw what of the clients' data, and what it cost."""

from fedjax_post.disclosure.ledger import DisclosureError, Entry, Form, Hosting, Price
