"""threadline behind the interfaces of other frameworks: one package and one extra each."""
