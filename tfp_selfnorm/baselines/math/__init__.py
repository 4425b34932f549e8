"""The maps of the paper's competitors, as functions of tensors."""
