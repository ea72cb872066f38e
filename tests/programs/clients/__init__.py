"""Small programs that ask for a URL, their last argument, and print what came; exit code 1 where that fails.

None of them says a word about proxies or certificates: that is what is tried.
"""
