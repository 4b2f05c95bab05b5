// The plan of a batch: CSR of bags and its transpose by touched row.
