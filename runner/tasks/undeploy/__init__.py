"""`task=undeploy`: removes an endpoint and everything that belongs to it; what is already gone is no error."""
