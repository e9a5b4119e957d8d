"""The disclosure ledger: which party received which of the clients' data, and at what cost."""

from fedjax_post.disclosure.ledger import Entry, Hosting, Price
from fedjax_post.disclosure.meter import Carried, DisclosureError, Form, Meter, Purpose
from fedjax_post.disclosure.metered import Metered
