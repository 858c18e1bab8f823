"""A drill: a request goes through the system while its processes are killed, and nothing may be lost or doubled."""
