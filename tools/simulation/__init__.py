"""Expected goodput of a run on a cluster that fails: closed forms, and a simulation that checks them."""
