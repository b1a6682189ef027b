"""`task=undeploy`: an endpoint and all that belongs to it are removed; what is gone already is no error."""
