"""The wire: identity, links between nodes, and the admin service. gRPC and generated code are used here only."""
