"""HTTP only: parse, call one function, shape the answer. One file per resource."""
