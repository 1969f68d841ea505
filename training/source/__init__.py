"""What a version is made of: files without a pickle, digests included, from which its model is made again."""
