"""Models that other people trained: each audited, or refused where that is right, and every σ held
against numpy's float64 SVD of the weight that another library reads from the same file."""
