"""stub"""


def create_from_file(session, options):
    raise NotImplementedError
