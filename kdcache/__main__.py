"""`python -m kdcache`: the command line, where its script is not on the path."""

from kdcache.cli.app import main

if __name__ == "__main__":
    main()
