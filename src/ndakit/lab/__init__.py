"""The lab network around a profile's balancers: plan, hosts, switch."""
